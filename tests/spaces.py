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


def write_space(folder: Path, content: str = SMALL, name: str = "space.yaml") -> Path:
    path = folder / name
    path.write_text(content)
    return path
