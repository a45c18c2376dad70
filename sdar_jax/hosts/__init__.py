"""Several processes that train one policy. Device."""
