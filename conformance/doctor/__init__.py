"""What this machine can assess, and what is missing where it cannot.

Whatever may raise, crash or hang (an import, a driver, a process group, a folder on a dead disk)
is tried in a child process; the parent reads answers and bounds the time of each.
"""
