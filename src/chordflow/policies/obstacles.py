"""The flow-matching families of LeRobot that have no adapter, and what stands in the way of each.

Read from the source of LeRobot 0.6.1. Where nothing but the work is missing, the reason says so.
Times and velocities follow the family's own convention: "noise at 0" means that its time runs from 0 (noise) to
1 (action) and that it predicts action - noise; "noise at 1" is chordflow's own convention.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Obstacle:
    """Why a family cannot be reflowed yet.

    Attributes:
        family: LeRobot's policy type, which is also the name of its folder in `lerobot/policies`.
        where: the place to look at, as `file.py: Class.function`, the file within that folder.
        reason: what stands in the way: one clause that fits into a longer sentence, without a stop.
        next_step: what an adapter, or the interface, would have to do; of the same form.
    """

    family: str
    where: str
    reason: str
    next_step: str


OBSTACLES: tuple[Obstacle, ...] = (
    Obstacle(
        family="evo1",
        where="flow_matching.py: FlowmatchingActionHead.get_action",
        reason=(
            "it fits the interface and only lacks an adapter: the velocity (noise at 0) is a function "
            "inside the sampler, time is cut to 1000 places, and the noise is uniform on [-1, 1] with "
            "zeros in the padded dimensions"
        ),
        next_step=(
            "put the velocity together from _project_actions, transformer_blocks, norm_out, seq_pool_proj "
            "and mlp_head under the mask of real dimensions; draw the masked uniform noise; hold "
            "InternVL3's fused tokens, their mask, the state and the embodiment as context, since "
            "state_encoder belongs to the head; set num_inference_timesteps; relocate vlm_model_name, "
            "whose folder the constructor always loads"
        ),
    ),
    Obstacle(
        family="fastwam",
        where="wan/modular.py: FastWAM.infer_action",
        reason=(
            "beyond one step its sampler (noise at 1) walks a time grid warped by sigma_shift or "
            "action_scheduler.infer_shift (5), which equal Euler steps do not follow; it draws every "
            "chunk's noise from the one inference_seed (42), takes one observation at a time, and keeps "
            "its VAE and text encoder outside the checkpoint and the module's parameters"
        ),
        next_step=(
            "let a policy name its own time grid, or refuse all but sigma_shift=1; the rest fits: the "
            "velocity is action_expert.pre_dit, mot.forward_action_with_video_cache and "
            "action_expert.post_dit at 1000 t, the context the first frame's keys and values with the "
            "embedded text and state; set num_inference_steps, clear inference_seed or say that a robot "
            "meets one noise only, and hash the frozen parts with the prefix"
        ),
    ),
    Obstacle(
        family="lingbot_va",
        where="modeling_lingbot_va.py: LingBotVAPolicy._infer",
        reason=(
            "the same transformer first denoises a video from a noise of its own, with guidance, over a "
            "cache that holds the episode so far, and the actions are denoised after it: neither one "
            "observation nor one noise decides the endpoint, and each stream has its own warped time grid "
            "and number of steps"
        ),
        next_step=(
            "make the episode's cache with the denoised video in it a context that is copied, not changed "
            "in place, and the video's noise an argument; then the action stream (noise at 1) has a "
            "velocity of its own, with the unused channels and an episode's first frame held at zero, and "
            "action_num_inference_steps as its steps; reflow of the video stream is a second task"
        ),
    ),
    Obstacle(
        family="molmoact2",
        where="molmoact2_hf_model/modeling_molmoact2.py: MolmoAct2Model.generate_actions_from_inputs",
        reason=(
            "it fits the interface and only lacks an adapter: ActionExpert.forward_with_context is the "
            "velocity (noise at 0), but noise, velocity and sample are zeroed in the padded dimensions, "
            "and the constructor always loads the whole converted folder that checkpoint_path names, 32 "
            "action dimensions wide"
        ),
        next_step=(
            "call forward_with_context without the cache of modulations, which outlives a change of "
            "weights, and under the sampler's autocast; hold the depth-gated keys and values of every "
            "layer with their mask as context and run prepare_context for each call, since its "
            "projections belong to the expert; draw the masked noise; set num_inference_steps, which is "
            "null by default; refuse discrete inference; relocate checkpoint_path"
        ),
    ),
    Obstacle(
        family="vla_jepa",
        where="action_head.py: VLAJEPAActionHead.predict_action",
        reason=(
            "it fits the interface and only lacks an adapter: the velocity (noise at 0) stands inside a "
            "sampler that keeps no gradients, time is cut to whole thousandths, and the constructor "
            "always loads Qwen3-VL, and V-JEPA 2 where the world model is on, from outside the checkpoint"
        ),
        next_step=(
            "put the velocity together from _build_inputs, model and action_decoder at int(t * "
            "action_num_timestep_buckets); hold the float32 tokens of _encode_qwen and the state as "
            "context, since state_encoder belongs to the head; ask the dataset for the present frame "
            "alone, not for the num_video_frames ahead that the world model's loss wants; set "
            "num_inference_timesteps; relocate qwen_model_name and jepa_encoder_name"
        ),
    ),
    Obstacle(
        family="wall_x",
        where="modeling_wall_x.py: Qwen2_5_VLMoEForAction.predict",
        reason=(
            "its number of steps is an argument (10) that neither WallXPolicy.predict_action_chunk nor "
            "the config sets, so no checkpoint can say that it acts in one step; the velocity (noise at "
            "0) is a function inside the sampler that runs the whole language model, and torchdiffeq is "
            "needed"
        ),
        next_step=(
            "LeRobot's WallXConfig needs a field for the steps that predict receives; then the context is "
            "the embedded images, text and state with their mask, positions and token types, the velocity "
            "puts ActionHead.step's embedding in the place of the action tokens, runs the model and "
            "projects back, and the backbone is prefix and head at once; relocate "
            "pretrained_name_or_path, whose weights the constructor always loads"
        ),
    ),
    Obstacle(
        family="xvla",
        where="modeling_xvla.py: XVLAModel.generate_actions",
        reason=(
            "the network predicts the clean action, and every step mixes that prediction with the first "
            "noise again instead of going on from where it is, so the sampler (noise at 1) solves no ODE; "
            "in the modes ee6d, joint and so101_bimanual the grippers are also blanked before the network "
            "and squeezed by a sigmoid after it"
        ),
        next_step=(
            "let a policy bring its own step, here x_next = t_next noise + (1 - t_next) prediction, for "
            "couplings and measures, and train the student's prediction at t = 1 on the teacher's "
            "endpoint, gripper channels as logits; the context is forward_vlm's two outputs with state "
            "and domain; set num_denoising_steps"
        ),
    ),
)
