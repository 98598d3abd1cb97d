"""Small spaces for tests, as files."""

from pathlib import Path

SMALL = """\
name: small
metric: auroc_any
trials: 3
epochs: 2
pretrained: no
lr_finder: {steps: 20}
parameters:
  backbone: {choice: [test_resnet, test_efficientnet]}
  batch_size:
    choice: [8, 16]
    when:
      - if: {backbone: test_efficientnet}
        choice: [8]
  size: 32
  channels: hu
  augment: {float: [0.0, 1.0]}
  lr: {factor: [0.3, 3.0]}
"""

FULL = """\
name: full
task: multilabel
strategy: promote
sampler: qmc
schedule: whole
epochs: 9
trials: 12
time: 8h
device_hours: 24
trial_limit: 90
promotion: {eta: 2, first_epochs: 2, child: continue, random_share: 0}
keep: {best: 3, disk_gb: 1.5}
confirm: {top: 2, seeds: 5, folds: true}
constraints:
  max_parameters: 30_000_000
  forbidden: [{backbone: [test_resnet, test_vit2], batch_size: 8}]
first_trials: [{backbone: test_resnet, lr: 1.0}]
parameters:
  backbone: {choice: [test_resnet, test_efficientnet, test_vit2]}
  batch_size: {choice: [8, 16]}
  size: 64
  channels: {choice: [hu, windows], when: [{if: {backbone: test_vit2}, remove: true}]}
  augment: {float: [0, 1], step: 0.5}
  augmentations: {choice: [flip, rotation]}
  label_smoothing: {float: [0.001, 0.1], log: true, when: [{if: {task: any}, value: 0.0}]}
  lr_schedule: {choice: [one_cycle, fine_tune], when: [{if: {backbone: [test_vit2]}, value: fine_tune}]}
  rise: {float: [0.1, 0.5]}
  lr_spread: {float: [10, 1000], log: true}
  frozen_epochs: {int: [1, 3]}
  lr: {factor: [0.3, 3.0], when: [{if: {backbone: test_vit2}, float: [1e-4, 1e-2], log: true}]}
"""


def write_space(folder: Path, content: str = SMALL, name: str = "space.yaml") -> Path:
    path = folder / name
    path.write_text(content)
    return path
