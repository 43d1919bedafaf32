"""What choosing a token needs of the device."""
