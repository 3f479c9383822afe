"""A real server and real agents as processes of one user, in one directory."""
