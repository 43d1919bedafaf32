"""Who asks: tenants, the file of their keys, and what each may have. Knows no routes and no adapters' tables."""
