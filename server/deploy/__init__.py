"""Several engines behind one API: each a replica with the whole model, and one process that deals sequences out.

What chooses and deals out knows engines by their connections, whoever has started them; `on_ray` starts them on Ray.
"""
