"""Networks of `transformers` for speech, time series and text."""

from tests.corpora.network import audio, series, spectrogram, tokens, transcription, translation
from tests.corpora.transformers_network import ENCODER, SPEECH, WORDS, TransformersNetwork

SEQUENCES = [
    TransformersNetwork(
        "Wav2Vec2-Conformer",
        "Wav2Vec2ConformerForCTC",
        audio(2000),
        {**SPEECH, "vocab_size": 20},
        True,
    ),
    TransformersNetwork(
        "Wav2Vec2-Conformer, rotary",
        "Wav2Vec2ConformerModel",
        audio(2000),
        {**SPEECH, "position_embeddings_type": "rotary"},
    ),
    TransformersNetwork(
        "Parakeet",
        "ParakeetEncoder",
        spectrogram(64, 80),
        {**ENCODER, "num_key_value_heads": 4, "subsampling_conv_channels": 16},
    ),
    TransformersNetwork(
        "PatchTST",
        "PatchTSTForPrediction",
        series(32, 2),
        {
            "num_input_channels": 2,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
        },
    ),
    TransformersNetwork(
        "PatchTSMixer",
        "PatchTSMixerForPrediction",
        series(32, 2),
        {"num_input_channels": 2, "norm_mlp": "BatchNorm", "num_layers": 2},
    ),
    TransformersNetwork("BERT", "BertForSequenceClassification", tokens(), WORDS, True),
    TransformersNetwork(
        "GPT-2",
        "GPT2LMHeadModel",
        tokens(),
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "vocab_size": 100,
            "use_cache": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        True,
    ),
    TransformersNetwork(
        "Llama", "LlamaForCausalLM", tokens(), {**WORDS, "num_key_value_heads": 2}, True
    ),
    TransformersNetwork(
        "T5",
        "T5ForConditionalGeneration",
        translation(),
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 100,
            "use_cache": False,
        },
    ),
    TransformersNetwork("Wav2Vec2", "Wav2Vec2Model", audio(2000), SPEECH),
    TransformersNetwork(
        "Whisper",
        "WhisperModel",
        transcription(),
        {
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "use_cache": False,
            "num_mel_bins": 20,
            "max_source_positions": 30,
            "vocab_size": 100,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
    ),
]
