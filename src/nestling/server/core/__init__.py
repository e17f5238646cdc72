"""The service behind the API: queue, scheduler, loaded models. Knows no HTTP."""
