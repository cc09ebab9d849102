"""What runs on a CUDA device: on an emulated one everywhere, on a real one where there is one."""
