"""The showcases through the converters: each network verified, measured and certified, in a repository of its own."""
