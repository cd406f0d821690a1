"""Train a segmentation network on a dataset folder.

    python main_train.py --root /data/amos --output runs/amos --dataset amos --network REP3D
    python main_train.py --root /data/amos --output runs/amos --dataset amos --network REP3D --resume
    torchrun --nproc_per_node 4 main_train.py --root /data/amos --output runs/amos --dataset amos --network REP3D

The recipe is the paper's: DiceCE loss, AdamW, two foreground crops a case, sliding-window validation. The output folder
receives best_metric_model.pth, last_checkpoint.pth, previous_checkpoint.pth, args.json and tensorboard/.

SIGTERM, Ctrl-C and the end of --max_hours stop the run after the step it is in: everything is saved, the command that
goes on is printed, and the exit status is 75.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engine.runtime.arguments import AMP_CHOICES, boolean, hours, network_overrides, number, odd, positive
from engine.runtime.errors import OneLineParser, Stopped, run
from engine.runtime.memory import tune_process
from engine.runtime.stop_requests import StopRequests, resume_command
from networks import NETWORKS

if TYPE_CHECKING:
    import torch

    from engine.training.state import TrainingState

# What to lower where memory is too small.
MEMORY = "--crop_sample, --batch_size, --roi_size, --num_workers or, validating, --sw_batch_size (or --checkpointing)"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; defaults are the paper's."""
    parser = OneLineParser(
        "main_train.py", description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--root", required=True, help="dataset folder with imagesTr, labelsTr, imagesVal, labelsVal")
    data.add_argument("--output", required=True, help="folder for checkpoints and logs")
    data.add_argument("--dataset", required=True, help="amos, amos_mri, kits, pancreas, hepatic or a .json description")
    data.add_argument("--roi_size", nargs=3, type=number(int, 1), default=[96, 96, 96], help="crop, voxels")
    data.add_argument("--crop_sample", type=number(int, 1), default=2, help="crops a case")
    data.add_argument("--batch_size", type=number(int, 1), default=1, help="cases an iteration, on each device")
    data.add_argument("--cache_dir", help="folder for preprocessed cases, made once and read crop by crop")
    data.add_argument("--cache_rate", type=number(float, 0, 1), help="else the share of cases kept in memory (0.1)")
    data.add_argument("--num_workers", type=number(int, 0), default=2, help="processes that load data, for each device")
    data.add_argument("--full_check", action="store_true", help="read every volume before training, not just headers")

    network = parser.add_argument_group("network")
    network.add_argument("--network", default="REP3D", choices=NETWORKS, help="architecture")
    network.add_argument("--feat_size", nargs="+", type=number(int, 1), help="channels of the stages (network's own)")
    network.add_argument("--kernel_size", type=odd, help="side of the large kernels, voxels (network's own)")
    network.add_argument("--pretrain", type=boolean, default=False, help="start from --pretrained_weights")
    network.add_argument("--pretrained_weights", help="checkpoint or state dict to start from: weights only")

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--max_iter", type=number(int, 1), default=60000, help="iterations")
    recipe.add_argument("--eval_step", type=number(int, 1), default=500, help="iterations between validations")
    recipe.add_argument("--optim", default="AdamW", choices=("AdamW", "Adam", "SGD"), help="optimiser")
    recipe.add_argument("--lr", type=positive, default=1e-4, help="peak learning rate")
    recipe.add_argument("--weight_decay", type=number(float, 0), default=0.08, help="weight decay")
    recipe.add_argument(
        "--lr_schedule", default="warmup_cosine", choices=("warmup_cosine", "constant"), help="of the rate"
    )
    recipe.add_argument("--warmup_iter", type=number(int, 0), help="iterations to the peak (a fiftieth of max_iter)")
    recipe.add_argument(
        "--sync_batchnorm", action="store_true", help="normalise over the batches of all of torchrun's processes"
    )
    recipe.add_argument(
        "--overlap", type=number(float, 0, 1, open_high=True), default=0.5, help="of validation windows"
    )
    recipe.add_argument("--sw_batch_size", type=number(int, 1), default=4, help="validation windows a GPU takes")

    execution = parser.add_argument_group("execution")
    execution.add_argument("--gpu", default="0", help="CUDA device number, or cpu")
    execution.add_argument("--amp", default="auto", choices=AMP_CHOICES, help="autocast precision")
    execution.add_argument("--compile", action="store_true", help="compile the network (needs a C++ compiler)")
    execution.add_argument("--checkpointing", action="store_true", help="less memory, more time: see README, Train")
    execution.add_argument(
        "--seed", type=number(int, 0, 2**32 - 1), default=0, help="of weights, order, crops and augmentation"
    )
    execution.add_argument("--resume", action="store_true", help="go on from last_checkpoint.pth in --output")
    execution.add_argument("--max_hours", type=hours, help="stop in good order after so long, with exit status 75")
    args = parser.parse_args(argv)
    if args.warmup_iter is None:
        args.warmup_iter = args.max_iter // 50
    if args.cache_dir and args.cache_rate is not None:
        parser.error("--cache_dir reads every case from the disk, expected it without --cache_rate")
    if args.cache_rate is None and not args.cache_dir:
        args.cache_rate = 0.1
    if args.pretrain != bool(args.pretrained_weights):
        parser.error("--pretrain True and --pretrained_weights go together, expected both or neither")
    return args


def main(args: argparse.Namespace) -> None:
    """Train alone or, under torchrun, together with its other processes."""
    tune_process()  # before PyTorch is imported: here, so that --help and a mistake in a flag answer at once
    try:
        with StopRequests(args.max_hours) as stop:
            from engine.runtime.distributed import join_processes

            with join_processes(args.gpu) as device:
                train_network(args, device, stop)
    except Stopped as request:
        raise Stopped(f"{request}, go on with: {resume_command(Path(args.output))}") from None


def train_network(args: argparse.Namespace, device: "torch.device", stop: StopRequests) -> None:
    """Check everything, then train."""
    import json
    from contextlib import nullcontext

    import torch
    from torch.utils.tensorboard import SummaryWriter

    from engine.data.cache import cached_dataset
    from engine.data.cases import find_training_cases
    from engine.data.dataset_checks import check_cases
    from engine.data.datasets import find_description
    from engine.prediction.sliding_window import Window
    from engine.runtime.distributed import process_rank
    from engine.runtime.files import BEST, make_output_folder, write_text
    from engine.training.state import TrainingState
    from engine.training.training_loop import TrainingLog, keep_best, log_validation, train
    from engine.training.validation import validate
    from engine.weights.checkpoints import NetworkConfig
    from load_datasets_transforms import training_pipelines

    description = find_description(args.dataset)
    output = Path(args.output)
    make_output_folder(output)

    torch.manual_seed(args.seed)
    training_cases, validation_cases = find_training_cases(Path(args.root), description)
    cases = [case["id"] for case in training_cases]
    config = NetworkConfig.for_dataset(description, args.network, args.roi_size, network_overrides(args))
    state = TrainingState(args, config, description, cases, device)
    choose_start(args, state, output)

    splits = {"training": training_cases, "validation": validation_cases}
    check_cases(splits, description, args.num_workers, args.full_check)
    parameters = sum(parameter.numel() for parameter in state.network.parameters())
    print(f"{description.name}: {len(training_cases)} training and {len(validation_cases)} validation cases")
    print(f"{args.network}: {parameters / 1e6:.2f} M parameters on {device}, autocast {state.precision or 'off'}")

    writes = process_rank() == 0
    if writes:
        write_text(output / "args.json", json.dumps(vars(args), indent=2) + "\n")
    if not args.resume:
        with stop.later():
            state.save(output)  # so that --resume works from the first moment on
        stop.answer()
    training_transforms, validation_transforms = training_pipelines(description, args.roi_size, args.crop_sample)
    cache = {"cache_dir": args.cache_dir, "cache_rate": args.cache_rate, "num_workers": args.num_workers}
    training_set = cached_dataset(training_cases, training_transforms, **cache)
    validation_set = cached_dataset(validation_cases, validation_transforms, **cache, dealt=True)
    window = Window(args.roi_size, args.sw_batch_size, args.overlap, device, state.autocast)
    progress = state.progress
    logs = {"log_dir": str(output / "tensorboard"), "purge_step": TrainingLog.first_step(progress)}
    with SummaryWriter(**logs) if writes else nullcontext() as writer, stop.later():

        def save() -> None:
            if writer is not None:
                writer.flush()  # before: a resumed run repeats what it may have lost, and never skips any
            state.save(output)

        def evaluate() -> None:
            with stop.at_once():  # everything was saved before
                table, figure = validate(state.network, validation_set, description, window, args.num_workers)
            keep_best(state, table, output)
            if writer is not None and figure is not None:
                log_validation(writer, state, table, figure)
            progress.awaits_evaluation = False
            save()

        train(args, state, training_set, TrainingLog(writer, progress), save, evaluate, stop)
    print(f"best mean Dice {progress.best_dice:.4f} at iteration {progress.best_iteration}: {output / BEST}")


def choose_start(args: argparse.Namespace, state: "TrainingState", output: Path) -> None:
    """Where the run begins: at an interrupted one's checkpoint, at other weights, or at the network's own."""
    from engine.runtime.errors import InputError
    from engine.runtime.files import LAST, PREVIOUS
    from engine.weights.checkpoints import load_checkpoint
    from engine.weights.load_weights import load_weights

    if args.resume:
        state.restore(output)
    elif (output / LAST).exists() or (output / PREVIOUS).exists():
        raise InputError(f"--output: {output} holds a run already, expected --resume or another folder")
    elif args.pretrain:
        weights, flag = Path(args.pretrained_weights), "--pretrained_weights"
        report = load_weights(state.network, load_checkpoint(weights, flag), f"{flag}: {weights}")
        print(f"{flag}: {report}")


if __name__ == "__main__":
    sys.exit(run(main, parse_args(), to_lower=MEMORY))
