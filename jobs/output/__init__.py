"""The files of an output, except the images themselves: records, parts, lease, progress."""
