"""Who asks: API keys, addresses, and what each caller may do."""
