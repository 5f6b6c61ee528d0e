"""The commands: one thin file each, started by `launch`."""
