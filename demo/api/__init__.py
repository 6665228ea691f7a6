"""The JSON API. `/docs` describes it for people, `/openapi.json` for programs."""
