"""Sound backbones that other people would write, each unlike the references in one way."""
