"""The endpoint: what OpenAI's clients ask, over the sampler. Device."""
