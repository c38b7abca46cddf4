"""Who is primary: switchover, failover, failback, join, rollback, and readiness for them."""
