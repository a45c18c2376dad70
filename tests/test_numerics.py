"""Where compiled programs are kept: in a folder that nobody else may write to."""

import os
import pathlib

import jax
import pytest

from sdar_jax import numerics


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A user without a choice of folder; JAX's own setting comes back."""
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  jax.config.update('jax_compilation_cache_dir', None)
  yield tmp_path / 'sdar-jax' / 'programs'
  jax.config.update('jax_compilation_cache_dir', before)


def test_the_folder_of_programs_is_the_user_s_alone(home):
  before = os.umask(0)
  try:
    numerics.keep_programs()
  finally:
    os.umask(before)
  assert jax.config.jax_compilation_cache_dir == str(home)
  assert home.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_could_write_to_is_closed(home):
  home.mkdir(parents=True)
  home.chmod(0o777)
  numerics.keep_programs()
  assert jax.config.jax_compilation_cache_dir == str(home)
  assert home.stat().st_mode & 0o777 == 0o700


def test_programs_of_another_user_are_not_run(home, monkeypatch, caplog):
  home.mkdir(parents=True)
  owner = home.stat().st_uid
  monkeypatch.setattr(os, 'getuid', lambda: owner + 1)
  numerics.keep_programs()
  assert jax.config.jax_compilation_cache_dir is None
  assert caplog.messages == [
    f'{home}: no programs are kept there, it is of another user'
  ]


def test_a_place_without_room_for_a_folder_is_jax_s_to_warn_of(home):
  pathlib.Path(home.parent).write_text('a file')
  numerics.keep_programs()
  assert jax.config.jax_compilation_cache_dir == str(home)


def test_a_folder_of_the_user_s_choice_stays_as_it_is(home, tmp_path):
  chosen = tmp_path / 'chosen'
  chosen.mkdir(mode=0o755)
  jax.config.update('jax_compilation_cache_dir', str(chosen))
  numerics.keep_programs()
  assert jax.config.jax_compilation_cache_dir == str(chosen)
  assert not home.exists() and chosen.stat().st_mode & 0o777 == 0o755
