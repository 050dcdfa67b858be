"""What a load test is told: servers, texts and loads, checked."""
