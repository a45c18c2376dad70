"""The learner: a run's weights, updated, scored and saved. Device."""
