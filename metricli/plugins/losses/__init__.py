"""The doors to losses, and what metric learning knows of their settings; a file for each family."""
