"""What programs under test find in place of packages that tests alone need."""
