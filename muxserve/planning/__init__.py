"""How many replicas a load needs: engines simulated with measured forward times."""
