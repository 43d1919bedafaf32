"""The API processes of one server: the primary process, its pool of workers, and what they share.

Knows processes, sockets and control messages; must not know routes, or the forms of requests and answers.
"""
