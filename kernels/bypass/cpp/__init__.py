"""The bypasses as one compiled loop, for CPUs of machines that have a C++ compiler."""
