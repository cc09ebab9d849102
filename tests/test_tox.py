"""What tox.ini promises that no run of it here can show."""

from __future__ import annotations

from configparser import ConfigParser

from tests import ROOT


def test_on_a_device_nothing_is_installed_over_what_is_there() -> None:
    tox = ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    gpu = tox["testenv:gpu"]
    # Left out, it would be inherited, and bring a torch and a transformers of its own.
    assert gpu.get("deps") == ""
    assert gpu["package"] == "skip"
    assert gpu.getboolean("system_site_packages")
