"""What runs the tasks of a flow that need not wait for one another."""
