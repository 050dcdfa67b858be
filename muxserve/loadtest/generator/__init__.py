"""The load: Locust in processes of its own, its users, and what they counted."""
