"""Owns when fees become revenue: schedules, their posting day by day, breakage, and the reports over them."""
