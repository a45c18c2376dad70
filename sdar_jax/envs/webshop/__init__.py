"""WebShop: our own engine, generated or official catalogues, prompts and experts."""
