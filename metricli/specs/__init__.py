"""What a user may say: pydantic models only; never sees a component."""
