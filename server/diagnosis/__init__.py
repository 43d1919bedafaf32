"""What a machine has for a server, found out without starting one."""
