"Runs in, one HTML page and its tables out."
from .page import write_report
