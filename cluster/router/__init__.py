"""The router: owns the transcript of every generation; serves the public edge."""
