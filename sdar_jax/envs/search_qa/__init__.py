"""Search-QA: questions answered by searching, in text."""
