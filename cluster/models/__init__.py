"""Where members' weights come from: names to folders, and what a folder says unloaded."""
