"""An engine as an HTTP service: what many clients send is computed in batches."""
