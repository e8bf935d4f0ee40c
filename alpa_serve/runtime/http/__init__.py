"""The runtime's HTTP server: AlpaServe's ``POST /``, OpenAI's API, health and metrics."""
