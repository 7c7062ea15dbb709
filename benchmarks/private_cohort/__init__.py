"""What DP-SGD leaves of patients with several records, by record and by patient as the unit."""
