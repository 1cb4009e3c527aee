"""The spec's JSON schema, for editors."""

import json

from schemas.spec.job_spec import JobSpec


def spec_schema() -> str:
    """JSON Schema 2020-12 of a job's YAML; descriptions are the fields' own docstrings."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
