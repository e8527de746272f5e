"""Pure data: job specs, states, model cards. Depends on pydantic and the standard library only."""
