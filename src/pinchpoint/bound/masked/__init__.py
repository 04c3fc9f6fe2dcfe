"""The norm of a linear map with masked units: exactly, or by enumeration."""
