"""Pure decisions about connection tracking entries."""
