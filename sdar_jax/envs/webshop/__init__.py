"""WebShop: search engine, shop, goals and reward. Host, no JAX."""
