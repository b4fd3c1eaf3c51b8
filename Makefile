# The two commands are `make lab` and `make test`; they need Python >= 3.11, git and make, nothing else.
.DEFAULT_GOAL := help
.PHONY: help setup setup-test lab test test-binder test-gpu notebooks notebooks-check variants shots report bench train \
	lock clean

PY := .venv/bin/python
LESSON :=
MODEL := shapes-vit

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' Makefile

setup:
	@sh tools/setup.sh lab

setup-test:
	@sh tools/setup.sh test

lab: setup  ## install, then open the course in JupyterLab (HEADLESS=1: no browser, prints the URL)
	@$(PY) tools/lab.py $(if $(HEADLESS),--headless)

test: setup-test  ## install the tested versions, then run everything that must pass
	@$(PY) tools/check.py

test-binder: setup-test  ## rehearse a launch on Binder: fresh install, JupyterLab, three lessons below 1 GB (minutes)
	@$(PY) tools/binder.py

test-gpu: setup-test  ## run every lesson on the GPU and compare it with what the CPU wrote (ONLY=05_seeing_attention for one)
	@$(PY) tools/gpu.py $(ONLY)

notebooks: setup-test  ## run every lesson from its .py and write the paired .ipynb (ONLY=04_build_a_vit for one)
	@$(PY) tools/notebooks.py $(ONLY)

notebooks-check: setup-test  ## run every lesson twice, the second time in random order, and compare with what is saved
	@$(PY) tools/check.py notebooks

variants: setup-test  ## make the learner's, the clean and the solved notebook of every lesson in build/variants/
	@$(PY) tools/variants.py

shots: setup-test  ## photograph lessons in a browser, light and dark, to build/shots/ (ONLY=05_seeing_attention)
	@$(PY) tools/shots.py $(ONLY)

report: setup  ## audit the shipped model and leave a page in report/ (or LESSON=00_start_here: a lesson as a page)
	@$(PY) -m labkit.cli report $(if $(LESSON),lesson $(LESSON),audit) --force

bench: setup  ## speed against timm, torch, onnxruntime and torchao, to bench/RESULTS.md (40 minutes; QUICK=1: three)
	@$(PY) bench/run.py $(if $(QUICK),--quick)

train: setup  ## train a shipped model again (MODEL=shapes-vit)
	@$(PY) -m labkit.zoo train $(MODEL)

lock: setup-test  ## resolve requirements.lock and binder/requirements.txt anew (needs uv)
	@$(PY) tools/lock.py

clean:  ## remove what the other targets made, except reports and training runs
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
