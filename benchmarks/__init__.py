"""What a unit of work costs. See README.md in this folder."""
