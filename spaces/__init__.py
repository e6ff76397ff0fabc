"""The ground floor: what may be chosen, and what a choice means for a base. No torch, no ray."""
