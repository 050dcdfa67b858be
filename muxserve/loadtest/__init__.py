"""Load tests: scenarios in, Locust against servers, figures and a report out."""
