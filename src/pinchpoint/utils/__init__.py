"""What every room may use and no room is about: files, numbers, configuration, the machine."""
