"""The spec's JSON schema, for editors."""

import json

from schemas.spec.job_spec import JobSpec


def spec_json_schema() -> str:
    """The JSON Schema (2020-12) of a job's YAML, as text; the descriptions are the fields' docstrings."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
