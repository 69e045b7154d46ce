from reports.figures import figure as figure
from reports.notebook import show as show
from reports.page.html import Report as Report
from reports.page.html import Section as Section
from reports.page.html import render as render
from reports.running.report import report as report
from reports.running.study import study as study
