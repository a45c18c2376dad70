"""Methods: rows of a table, their interface, teachers, objective. Device."""
